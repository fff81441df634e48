"""The demo: a year of real orders through the real thing, in about a minute and a half."""
