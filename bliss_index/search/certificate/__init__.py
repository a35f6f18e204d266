"""What every exact search is held to: order, ties, precision, and float64 brute force."""
