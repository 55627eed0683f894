"""The chain: a plan, an orchestrator, and the executors that run its steps."""
