"""Images and labels: decoded, encoded, and what their headers say."""
