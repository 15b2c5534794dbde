"""What people look at: rows as text, rows drawn over their images, the state of the installation."""
