"""German vocabulary and its irregular forms, for the grammar in `german.py`."""

# Article, singular, plural, as in a dictionary. Kinds say which verbs may take the noun.
NOUNS = {
    "person": "der Mann Männer, die Frau Frauen, das Kind Kinder, der Junge Jungen, das Mädchen "
    "Mädchen, der Lehrer Lehrer, die Lehrerin Lehrerinnen, der Arzt Ärzte, die Ärztin Ärztinnen, "
    "der Freund Freunde, die Freundin Freundinnen, der Bruder Brüder, die Schwester Schwestern, "
    "der Bäcker Bäcker, die Köchin Köchinnen, der Student Studenten, die Königin Königinnen, "
    "der Sohn Söhne, die Tochter Töchter, der Gast Gäste, das Baby Babys, der Kunde Kunden, "
    "die Malerin Malerinnen, der Bauer Bauern, der Kollege Kollegen, die Tante Tanten",
    "animal": "der Hund Hunde, die Katze Katzen, das Pferd Pferde, die Kuh Kühe, der Vogel Vögel, "
    "die Maus Mäuse, das Schaf Schafe, der Löwe Löwen, der Fisch Fische, die Ente Enten, "
    "der Hase Hasen, die Ziege Ziegen, das Huhn Hühner, der Bär Bären, das Schwein Schweine",
    "food": "das Brot Brote, der Apfel Äpfel, die Suppe Suppen, das Ei Eier, der Kuchen Kuchen, "
    "die Birne Birnen, die Kartoffel Kartoffeln, das Würstchen Würstchen, die Tomate Tomaten, "
    "der Salat Salate, das Brötchen Brötchen, die Zwiebel Zwiebeln, der Pilz Pilze",
    "text": "das Buch Bücher, der Brief Briefe, die Zeitung Zeitungen, das Gedicht Gedichte, "
    "der Roman Romane, die Geschichte Geschichten, das Märchen Märchen, der Bericht Berichte, "
    "die Nachricht Nachrichten, das Rezept Rezepte",
    "thing": "der Tisch Tische, die Lampe Lampen, das Auto Autos, der Stuhl Stühle, die Tasche "
    "Taschen, das Fahrrad Fahrräder, der Schlüssel Schlüssel, die Uhr Uhren, das Messer Messer, "
    "der Hut Hüte, die Blume Blumen, das Bild Bilder, der Koffer Koffer, die Tür Türen, "
    "das Hemd Hemden, der Ball Bälle, die Flasche Flaschen, das Glas Gläser, der Stein Steine",
    "place": "das Haus Häuser, der Garten Gärten, die Stadt Städte, das Dorf Dörfer, die Schule "
    "Schulen, der Park Parks, die Küche Küchen, das Museum Museen, der Wald Wälder, die Kirche "
    "Kirchen, das Zimmer Zimmer, der Keller Keller, die Fabrik Fabriken, das Theater Theater, "
    "der Hof Höfe, die Bibliothek Bibliotheken, das Büro Büros, der Bahnhof Bahnhöfe",
}
N_DECLENSION = {"Junge", "Student", "Kunde", "Kollege", "Bauer", "Löwe", "Hase", "Bär"}
ADJECTIVES = {
    "person": "alt jung freundlich klug müde fleißig arm reich ruhig nett mutig berühmt",
    "animal": "klein groß schnell langsam weiß schwarz wild treu braun hungrig schön faul",
    "food": "frisch warm kalt süß salzig lecker billig teuer weich gesund",
    "text": "lang kurz spannend langweilig alt neu traurig schwierig einfach berühmt",
    "thing": "neu alt rot blau grün gelb weiß schwarz klein groß sauber schmutzig teuer schwer",
    "place": "groß klein alt ruhig schön dunkel modern berühmt leer voll",
}
INFLECTED_STEM = {"teuer": "teur", "dunkel": "dunkl", "müde": "müd"}
VERBS = {  # verbs with an accusative object of the kind
    "food": "essen kaufen verkaufen kochen holen suchen nehmen schneiden bestellen",
    "text": "lesen schreiben kaufen suchen finden vergessen verlieren erklären kennen",
    "thing": "kaufen verkaufen suchen finden sehen tragen brauchen verlieren reparieren zeichnen "
    "nehmen waschen holen putzen",
    "person": "sehen besuchen kennen suchen fragen rufen treffen lieben hören grüßen",
    "animal": "sehen füttern suchen finden beobachten lieben waschen rufen",
}
GIVING = ["geben", "zeigen", "schenken", "bringen", "schicken", "kaufen"]
DATIVE_VERBS = ["helfen", "danken", "antworten", "folgen"]
ACTIONS = "arbeiten spielen singen tanzen schlafen wohnen lernen warten sitzen stehen lachen"
MOTIONS = ["gehen", "fahren", "laufen", "wandern", "kommen"]
STRONG = """
sehen sieht sah gesehen, lesen liest las gelesen, essen isst aß gegessen, finden findet fand
gefunden, nehmen nimmt nahm genommen, tragen trägt trug getragen, schreiben schreibt schrieb
geschrieben, geben gibt gab gegeben, helfen hilft half geholfen, fahren fährt fuhr gefahren,
gehen geht ging gegangen, kommen kommt kam gekommen, laufen läuft lief gelaufen, schlafen schläft
schlief geschlafen, sitzen sitzt saß gesessen, stehen steht stand gestanden, singen singt sang
gesungen, rufen ruft rief gerufen, waschen wäscht wusch gewaschen, verlieren verliert verlor
verloren, vergessen vergisst vergaß vergessen, treffen trifft traf getroffen, schneiden schneidet
schnitt geschnitten, bringen bringt brachte gebracht, kennen kennt kannte gekannt
"""  # infinitive, er-form of the present, er-form of the preterite, participle
PRINCIPAL_PARTS = {entry.split()[0]: entry.split() for entry in STRONG.split(",")}
WITH_SEIN = {"gehen", "fahren", "laufen", "wandern", "kommen", "folgen"}  # perfect with sein
AUXILIARY = {
    ("sein", "present"): "bin bist ist sind seid sind",
    ("sein", "preterite"): "war warst war waren wart waren",
    ("haben", "present"): "habe hast hat haben habt haben",
    ("haben", "preterite"): "hatte hattest hatte hatten hattet hatten",
    ("werden", "present"): "werde wirst wird werden werdet werden",
}
TENSES = ("present", "preterite", "perfect", "future")
TIMES = {
    "present": ["heute", "jeden Tag", "jetzt", "am Morgen", "oft", "manchmal"],
    "preterite": ["gestern", "damals", "vor zwei Tagen", "im letzten Sommer", "am Abend"],
    "perfect": ["gestern", "schon oft", "letzte Woche", "am Montag", "heute"],
    "future": ["morgen", "bald", "nächste Woche", "im nächsten Jahr", "später"],
}
PRONOUNS = {0: "ich", 1: "du", 3: "wir", 4: "ihr"}
