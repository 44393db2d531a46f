from vqvae2.cli.suite import main

main()
