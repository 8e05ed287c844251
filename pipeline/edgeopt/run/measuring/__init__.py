"""Measuring on devices: samples, jobs, their protocol, and the order in which they run."""
