"""The shipped core without a page: what browsers run, in QuickJS, driven by whoever has a clock and a network."""
