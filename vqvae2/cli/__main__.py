from vqvae2.cli.main import main

main()
