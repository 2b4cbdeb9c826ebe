"""The library's face: `pipeline.fit` and what it gives. It stands above the commands' own code in
`launch/`, which it shares: a run is the same run, whoever asks for it."""
