"""The demo: a year of real flights through the whole loop. Nothing else in the product knows of it."""
