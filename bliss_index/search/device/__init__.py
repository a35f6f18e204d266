"""Certified exact top-k on a torch device: everything stays there, from the codes to the order."""
