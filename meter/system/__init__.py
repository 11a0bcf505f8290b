"""What every room may need of the operating system: processes, and files of others."""
