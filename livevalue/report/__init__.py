"""`evaluate --html`: one page for people that needs neither a server nor a network."""
