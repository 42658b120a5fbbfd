"""What the experts of a trained model do: counted over images, written as data (routes.json), and drawn from that."""
