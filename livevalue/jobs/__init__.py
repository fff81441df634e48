"""What the commands do, one function each: settings and plain arguments in, plain facts out.

Nothing here parses a command line or draws on a terminal; a command in livevalue/commands does,
and anybody may call these from a scheduler of their own.
"""
