"""Sets of pictures that belong together: of one person, of one item, or a picture and edits of it."""
