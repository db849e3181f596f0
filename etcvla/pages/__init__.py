"""HTML pages and pictures: report, gallery, knowledge charts, first batch, plan, videos."""
