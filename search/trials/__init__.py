"""What is known of a trial: values, without files, network or clocks."""
