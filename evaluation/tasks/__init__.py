"""What models are asked: each task says which rows it needs and makes a result of them; one file a kind."""
