"""Preparation of real corpora: CVSS-C and CoVoST 2 to training data."""
