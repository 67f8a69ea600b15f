"""What all commands share: their wrapper, checks of the command line, console output, and the doctor."""
