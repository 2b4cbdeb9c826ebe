"""Local rules, what a block learns from: the contract, and the shipped ones, a file each."""
