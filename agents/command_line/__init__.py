"""What commands share: names that were typed, what is printed and what is to be typed."""
