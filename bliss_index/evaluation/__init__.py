"""How good scores are: metrics, the paper's protocols, other detectors for comparison."""
