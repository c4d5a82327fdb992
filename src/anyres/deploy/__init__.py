"""From a trained model to answers at speed: the deploy form, the engines that run it, and the one interface to them."""
