"""Pages for people, made in the finish of a stage: what was counted, examples with their boxes drawn, one style."""
