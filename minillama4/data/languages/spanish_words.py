"""Spanish vocabulary and its irregular forms, for the grammar in `spanish.py`."""

# Nouns are listed with their article, as one learns them. Kinds say which verbs may take them.
NOUNS = {
    "person": "el niño la niña el hombre la mujer el médico la médica el profesor la profesora "
    "el amigo la amiga el vecino la vecina el hermano la hermana el abuelo la abuela el cocinero "
    "la cocinera el pintor la pintora el alumno la alumna el rey la reina el pescador la doctora "
    "el panadero la bailarina el actor la actriz el juez la capitana el ladrón la madre el padre",
    "animal": "el perro la gata el caballo la vaca el pájaro la paloma el ratón la oveja el león "
    "el pez la tortuga el lobo la abeja el conejo la cabra el burro la araña la águila",
    "food": "el pan la manzana el queso la sopa el arroz la naranja el pescado la carne el huevo "
    "la patata el pastel la ensalada el limón la pera el tomate la miel el melón la galleta",
    "text": "el libro la carta el periódico la novela el cuento la revista el poema la lección "
    "el mensaje la noticia el mapa la canción",
    "thing": "la mesa el coche la silla el reloj la lámpara el zapato la camisa el vaso la llave "
    "el lápiz la caja el cuchillo la bicicleta el barco la puerta el espejo la maleta el sombrero "
    "la flor el árbol la piedra el tambor la guitarra el paraguas la agua",
    "place": "la casa el parque la ciudad el pueblo la escuela el jardín la plaza el mercado "
    "la playa el bosque la montaña el hospital la estación el hotel la biblioteca el museo "
    "la cocina el puente la isla el campo la calle el río la iglesia el castillo",
}
ADJECTIVES = {
    "person": "alto bajo joven viejo amable simpático tranquilo inteligente famoso feliz pobre "
    "rico valiente tímido serio generoso cortés",
    "animal": "pequeño grande rápido lento blanco negro salvaje fiel tranquilo hermoso gris feroz",
    "food": "fresco rico caliente frío dulce salado delicioso amargo tierno barato",
    "text": "largo corto interesante aburrido antiguo nuevo triste difícil fácil famoso breve",
    "thing": "nuevo viejo rojo azul verde amarillo blanco negro pequeño grande limpio sucio roto "
    "caro útil pesado ligero",
    "place": "grande pequeño antiguo tranquilo hermoso oscuro lejano moderno famoso verde limpio",
}
STATES = "cansado contento triste enfermo ocupado tranquilo perdido solo sentado enojado"
VERBS = {
    "food": "comer comprar vender preparar cocinar probar cortar buscar pedir",
    "text": "leer escribir comprar buscar recordar estudiar llevar recibir encontrar",
    "thing": "comprar vender buscar encontrar mostrar limpiar perder llevar pintar romper mover "
    "recoger tocar necesitar ver tener",
    "person": "ayudar visitar buscar llamar conocer encontrar esperar escuchar saludar ver",
    "animal": "cuidar mirar buscar encontrar ver perder lavar comprar",
}
ACTIONS = "trabajar cantar bailar descansar estudiar vivir correr caminar jugar hablar nadar"
TIMES = {
    "present": ["hoy", "cada día", "siempre", "ahora", "por la mañana", "los lunes", "a veces"],
    "preterite": ["ayer", "anoche", "el lunes pasado", "hace dos días", "la semana pasada"],
    "imperfect": ["antes", "en aquel tiempo", "cada verano", "muchas veces", "todos los días"],
    "future": ["mañana", "el año próximo", "la semana próxima", "más tarde", "pronto"],
}
PRONOUNS = {0: ["yo"], 1: ["tú"], 3: ["nosotros", "nosotras"], 4: ["vosotros", "vosotras"]}
STRESSED_A = {"agua", "águila"}  # feminine, yet "el agua", "un águila": two stressed a would meet

# One list per tense and class of infinitive: yo, tú, él, nosotros, vosotros, ellos.
ENDINGS = {
    "present": {
        "ar": "o as a amos áis an",
        "er": "o es e emos éis en",
        "ir": "o es e imos ís en",
    },
    "preterite": {
        "ar": "é aste ó amos asteis aron",
        "er": "í iste ió imos isteis ieron",
        "ir": "í iste ió imos isteis ieron",
    },
    "imperfect": {
        "ar": "aba abas aba ábamos abais aban",
        "er": "ía ías ía íamos íais ían",
        "ir": "ía ías ía íamos íais ían",
    },
}
FUTURE = ["é", "ás", "á", "emos", "éis", "án"]
FUTURE_STEM = {"tener": "tendr"}
STRESSED_STEM = {  # the stem of the present where the stress falls on it
    "probar": "prueb", "recordar": "recuerd", "encontrar": "encuentr", "mostrar": "muestr",
    "perder": "pierd", "mover": "muev", "pedir": "pid", "jugar": "jueg",
}  # fmt: skip
IRREGULAR = {
    ("ser", "present"): "soy eres es somos sois son",
    ("ser", "preterite"): "fui fuiste fue fuimos fuisteis fueron",
    ("ser", "imperfect"): "era eras era éramos erais eran",
    ("estar", "present"): "estoy estás está estamos estáis están",
    ("estar", "preterite"): "estuve estuviste estuvo estuvimos estuvisteis estuvieron",
    ("tener", "present"): "tengo tienes tiene tenemos tenéis tienen",
    ("tener", "preterite"): "tuve tuviste tuvo tuvimos tuvisteis tuvieron",
    ("ir", "present"): "voy vas va vamos vais van",
    ("ir", "preterite"): "fui fuiste fue fuimos fuisteis fueron",
    ("ir", "imperfect"): "iba ibas iba íbamos ibais iban",
    ("ver", "present"): "veo ves ve vemos veis ven",
    ("ver", "preterite"): "vi viste vio vimos visteis vieron",
    ("ver", "imperfect"): "veía veías veía veíamos veíais veían",
    ("leer", "preterite"): "leí leíste leyó leímos leísteis leyeron",
    ("pedir", "preterite"): "pedí pediste pidió pedimos pedisteis pidieron",
}
