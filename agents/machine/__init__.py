"""What differs from machine to machine: cores, files and their locks."""
