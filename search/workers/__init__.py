"""Who trains. With jobs, the one room with ray."""
