"""The shipped core without a page: the code of browsers in QuickJS, with a real or simulated clock and network."""
