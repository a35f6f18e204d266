"""The paper's data sets and protocols."""
