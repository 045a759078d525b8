"""Small families of networks: every class builds members of any depth and width."""
