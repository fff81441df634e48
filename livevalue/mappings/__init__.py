"""The mappings that come with Livevalue, a TOML file each; livevalue.mapping interprets them."""
