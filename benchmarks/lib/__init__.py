"""What the commands share: contenders, clocks, records of memory, results, tables."""
