"""What is wrong between a browser and the server: Run test, the same from a shell (doctor), and faults on purpose."""
