"""Pages and pictures for people: reports, galleries of labels, charts, videos, the first batch."""
