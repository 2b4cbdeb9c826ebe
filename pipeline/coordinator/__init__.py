"""Feeds the stages, gathers what they say, and replaces those that are lost."""
