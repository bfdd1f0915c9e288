"""From prompts to videos: sampling a stage, a cascade, longer videos."""
