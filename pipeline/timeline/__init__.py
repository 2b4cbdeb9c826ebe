"""Where the time of a run goes, span by span: recorded, aligned, in Chrome's format."""
