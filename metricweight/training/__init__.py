"""Programs: settings in, a run folder out."""
