"""Where joules come from: sources of energy readings, and the one thread that polls them."""
