"""Where understood speech is lost on the way from real target speech to the system as heard."""
