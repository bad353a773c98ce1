"""Drawing what runs brought."""
