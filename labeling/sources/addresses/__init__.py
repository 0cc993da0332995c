"""Pictures named by their addresses in a list: which lists there are, and how politely and safely they are fetched."""
