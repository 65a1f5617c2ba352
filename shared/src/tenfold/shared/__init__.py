"""What the Tenfold packages share: logging, run records, seeding, accelerator set-up."""
