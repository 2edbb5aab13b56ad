module modelsat.example/route

go 1.25
