"""Runs a plan: build, measure, assemble; also the store and the agent protocol."""
