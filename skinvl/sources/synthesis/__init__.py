"""What `skinvl synth` is made of: prompts drawn for images, servers asked, replies screened, a source written."""
