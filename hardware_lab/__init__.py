"""The device lab: which boards there are, what they should measure, and what they said."""
