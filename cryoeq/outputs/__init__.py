"""Files for a person: run folders, reports, figures."""
