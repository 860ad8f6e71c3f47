"""The commands: each a generator of events, and the place where the parts are put together."""
