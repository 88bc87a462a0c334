"""Simulated users: who speaks with the agent."""
