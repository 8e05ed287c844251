"""A plan carried out: build, measure, assemble, with the store and the protocol of the agent."""
