"""The household in German, French, Spanish, Italian and Dutch, smaller than the English one.

Keys are as in `home_words`; people and titles are shared with English.
"""

GERMAN: dict[str, str] = {
    "area": "Küche, Wohnzimmer, Schlafzimmer, Badezimmer, Flur, Büro, Esszimmer, Gästezimmer,"
    " Kinderzimmer, Keller",
    "floor": "Erdgeschoss, Obergeschoss, Dachgeschoss, Untergeschoss",
    "zone": "Arbeit, Schule, Kindergarten, Universität",
    "light.name": "Stehlampe, Deckenleuchte, Nachttischlampe, Lichterkette, Wandleuchte",
    "switch.name": "Kaffeemaschine, Wasserkocher, Toaster, Luftbefeuchter, Heizdecke",
    "fan.name": "Deckenventilator, Turmventilator, Standventilator, Tischventilator",
    "input_boolean.name": "Urlaubsmodus, Gästemodus, Partymodus, Ruhezeit",
    "media_player.name": "Fernseher, Radio, Soundbar, Plattenspieler, Stereoanlage",
    "climate.name": "Thermostat, Wärmepumpe, Klimaanlage, Heizkörper",
    "cover.name": "Dachfenster, Terrassenrollo, Seitentor, Samtvorhang",
    "valve.name": "Wasserventil, Gasventil, Gartenhahn, Sprinklerventil",
    "lock.name": "Haustür, Hintertür, Kellertür, Fahrradschloss",
    "vacuum.name": "Staubsauger, Saugroboter, Wischroboter, Krümelfresser",
    "lawn_mower.name": "Rasenroboter, Grasfresser, Gartenroboter, Mähroboter",
    "scene.name": "Filmabend, Guten Morgen, Sonnenuntergang, Abendessen",
    "script.name": "Morgenroutine, Haus verlassen, Pflanzen gießen, Rundgang",
    "button.name": "Türklingel, Neustart, Futterspender, Aufzug",
    "weather.name": "Berlin, Hamburg, Wien, Zürich, München",
    "sensor.name": "Außenthermometer, Regenmesser, Stromzähler, Luftsensor",
    "binary_sensor.name": "Bewegungsmelder, Rauchmelder, Wassermelder, Parkplatz",
    "open_sensor.name": "Briefkasten, Kühlschrank, Schublade, Kleiderschrank",
    "todo.name": "Haushalt, Urlaub, Garten, Familie",
    "timer_name": "Pizza, Nudeln, Wäsche, Tee, Kuchen, Eier",
    "shopping_list_item": "Milch, Eier, Brot, Butter, Äpfel, Tomaten, Reis, Käse, Kaffee,"
    " Batterien, Seife, Honig",
    "todo_list_item": "Rechnung bezahlen, Auto waschen, Müll rausbringen, Fenster putzen, Pakete"
    " abholen, Zelt, Handschuhe, Farbe",
    "message": "das Essen ist fertig, der Bus ist da, wir fahren gleich los, es schneit draußen,"
    " Zeit fürs Bett",
    "timer_command": "schalte das Radio aus, öffne die Rollläden, starte den Saugroboter, schalte"
    " die Stehlampe ein",
}

FRENCH: dict[str, str] = {
    "area": "cuisine, salon, chambre, salle de bain, couloir, bureau, salle à manger, garage,"
    " grenier, cave",
    "floor": "rez-de-chaussée, premier étage, deuxième étage, sous-sol",
    "zone": "travail, école, maison, université",
    "light.name": "lampadaire, plafonnier, lampe de chevet, guirlande, applique",
    "switch.name": "cafetière, bouilloire, grille-pain, humidificateur, imprimante",
    "fan.name": "ventilateur de plafond, ventilateur colonne, brasseur, petit ventilateur",
    "input_boolean.name": "mode vacances, mode invités, mode fête, mode nuit",
    "media_player.name": "télévision, radio, barre de son, tourne-disque, enceinte",
    "climate.name": "thermostat, pompe à chaleur, climatiseur, radiateur",
    "cover.name": "volet roulant, rideau de velours, baie vitrée, portail latéral",
    "valve.name": "vanne principale, vanne de gaz, robinet du jardin, arrosage",
    "lock.name": "porte d'entrée, porte arrière, porte de la cave, antivol",
    "vacuum.name": "aspirateur, robot aspirateur, robot laveur, mange-miettes",
    "lawn_mower.name": "tondeuse, robot tondeur, coupe-herbe, robot du jardin",
    "scene.name": "soirée cinéma, dîner romantique, coucher de soleil, bonne nuit",
    "script.name": "routine du matin, départ de la maison, arrosage des plantes, ronde de nuit",
    "button.name": "sonnette, redémarrage, distributeur, ascenseur",
    "weather.name": "Paris, Lyon, Marseille, Bruxelles, Genève",
    "sensor.name": "thermomètre extérieur, pluviomètre, compteur électrique, baromètre",
    "binary_sensor.name": "capteur de mouvement, détecteur de fumée, capteur de fuite, caméra",
    "open_sensor.name": "boîte aux lettres, réfrigérateur, tiroir, armoire",
    "todo.name": "maison, vacances, jardin, famille",
    "timer_name": "pizza, pâtes, lessive, thé, gâteau, œufs",
    "shopping_list_item": "lait, œufs, pain, beurre, pommes, tomates, riz, fromage, café, piles,"
    " savon, miel",
    "todo_list_item": "payer la facture, laver la voiture, sortir la poubelle, nettoyer les"
    " vitres, tente, gants, peinture, vis",
    "message": "le dîner est prêt, le bus est là, nous partons bientôt, il neige dehors, au lit"
    " les enfants",
    "timer_command": "éteins la radio, ouvre les volets, démarre le robot aspirateur, allume le"
    " lampadaire",
}

SPANISH: dict[str, str] = {
    "area": "cocina, salón, dormitorio, baño, pasillo, oficina, comedor, garaje, sótano, desván",
    "floor": "planta baja, primera planta, segunda planta, planta alta",
    "zone": "trabajo, colegio, casa, universidad",
    "light.name": "lámpara de pie, plafón, lámpara de noche, guirnalda, aplique",
    "switch.name": "cafetera, hervidor, tostadora, humidificador, impresora",
    "fan.name": "ventilador de techo, ventilador de torre, ventilador de mesa, extractor",
    "input_boolean.name": "modo vacaciones, modo invitados, modo fiesta, modo noche",
    "media_player.name": "televisor, radio, barra de sonido, tocadiscos, altavoz",
    "climate.name": "termostato, bomba de calor, aire acondicionado, radiador",
    "cover.name": "persiana grande, cortina de terciopelo, ventanal, portón lateral",
    "valve.name": "llave de paso, válvula de gas, grifo del jardín, válvula de riego",
    "lock.name": "puerta principal, puerta trasera, puerta del sótano, candado",
    "vacuum.name": "aspiradora, robot aspirador, robot fregona, comemigas",
    "lawn_mower.name": "cortacésped, robot del jardín, cortahierba, robot segador",
    "scene.name": "noche de cine, cena romántica, atardecer, buenas noches",
    "script.name": "rutina de mañana, salida de casa, riego de plantas, ronda de noche",
    "button.name": "timbre, reinicio, comedero, ascensor",
    "weather.name": "Madrid, Barcelona, Sevilla, Bogotá, Lima",
    "sensor.name": "termómetro exterior, pluviómetro, contador de luz, barómetro",
    "binary_sensor.name": "sensor de movimiento, detector de humo, sensor de fugas, cámara",
    "open_sensor.name": "buzón, frigorífico, cajón, armario",
    "todo.name": "hogar, vacaciones, jardín, familia",
    "timer_name": "pizza, pasta, colada, té, pastel, huevos",
    "shopping_list_item": "leche, huevos, pan, mantequilla, manzanas, tomates, arroz, queso,"
    " café, pilas, jabón, miel",
    "todo_list_item": "pagar la factura, lavar el coche, sacar la basura, limpiar las ventanas,"
    " tienda de campaña, guantes, pintura, tornillos",
    "message": "la cena está lista, ha llegado el autobús, salimos pronto, está nevando, hora de"
    " dormir",
    "timer_command": "apaga la radio, abre las persianas, inicia el robot aspirador, enciende la"
    " lámpara de pie",
}

ITALIAN: dict[str, str] = {
    "area": "cucina, soggiorno, camera da letto, bagno, corridoio, ufficio, sala da pranzo,"
    " garage, cantina, soffitta",
    "floor": "piano terra, primo piano, secondo piano, seminterrato",
    "zone": "lavoro, scuola, casa, università",
    "light.name": "lampada da terra, plafoniera, lampada da notte, ghirlanda, faretto",
    "switch.name": "macchina del caffè, bollitore, tostapane, umidificatore, stampante",
    "fan.name": "ventilatore da soffitto, ventilatore a torre, ventilatore da tavolo, aspiratore",
    "input_boolean.name": "modalità vacanza, modalità ospiti, modalità festa, modalità notte",
    "media_player.name": "televisore, radio, soundbar, giradischi, cassa",
    "climate.name": "termostato, pompa di calore, condizionatore, radiatore",
    "cover.name": "tapparella grande, tenda di velluto, vetrata, cancello laterale",
    "valve.name": "valvola principale, valvola del gas, rubinetto del giardino, valvola di"
    " irrigazione",
    "lock.name": "porta d'ingresso, porta sul retro, porta della cantina, lucchetto",
    "vacuum.name": "aspirapolvere, robot aspirapolvere, robot lavapavimenti, mangiabriciole",
    "lawn_mower.name": "tagliaerba, robot del giardino, tosaerba, robot rasaerba",
    "scene.name": "serata film, cena romantica, tramonto, buona notte",
    "script.name": "routine del mattino, uscita di casa, innaffiatura piante, ronda notturna",
    "button.name": "campanello, riavvio, distributore, ascensore",
    "weather.name": "Roma, Milano, Torino, Napoli, Palermo",
    "sensor.name": "termometro esterno, pluviometro, contatore elettrico, barometro",
    "binary_sensor.name": "sensore di movimento, rilevatore di fumo, sensore di perdite,"
    " telecamera",
    "open_sensor.name": "cassetta della posta, frigorifero, cassetto, armadio",
    "todo.name": "casa, vacanze, giardino, famiglia",
    "timer_name": "pizza, pasta, bucato, tè, torta, uova",
    "shopping_list_item": "latte, uova, pane, burro, mele, pomodori, riso, formaggio, caffè,"
    " pile, sapone, miele",
    "todo_list_item": "pagare la bolletta, lavare la macchina, buttare la spazzatura, pulire le"
    " finestre, tenda da campeggio, guanti, vernice, viti",
    "message": "la cena è pronta, l'autobus è arrivato, partiamo tra poco, fuori nevica, è ora di"
    " dormire",
    "timer_command": "spegni la radio, apri le tapparelle, avvia il robot aspirapolvere, accendi"
    " la lampada da terra",
}

DUTCH: dict[str, str] = {
    "area": "keuken, woonkamer, slaapkamer, badkamer, gang, kantoor, eetkamer, logeerkamer,"
    " garage, kelder",
    "floor": "begane grond, eerste verdieping, tweede verdieping, zolderverdieping",
    "zone": "werk, school, kantoor, universiteit",
    "light.name": "staande lamp, plafondlamp, bedlamp, lichtslinger, wandlamp",
    "switch.name": "koffiezetapparaat, waterkoker, broodrooster, luchtbevochtiger, printer",
    "fan.name": "plafondventilator, torenventilator, tafelventilator, afzuiger",
    "input_boolean.name": "vakantiestand, gastenstand, feeststand, nachtstand",
    "media_player.name": "televisie, radio, soundbar, platenspeler, luidspreker",
    "climate.name": "thermostaat, warmtepomp, airco, radiator",
    "cover.name": "rolluik, fluwelen gordijn, dakraam, zijpoort",
    "valve.name": "hoofdkraan, gaskraan, tuinkraan, sproeierklep",
    "lock.name": "voordeur, achterdeur, kelderdeur, fietsslot",
    "vacuum.name": "stofzuiger, robotstofzuiger, dweilrobot, kruimeldief",
    "lawn_mower.name": "grasmaaier, maairobot, tuinrobot, grasvreter",
    "scene.name": "filmavond, romantisch diner, zonsondergang, welterusten",
    "script.name": "ochtendroutine, huis verlaten, planten water geven, nachtronde",
    "button.name": "deurbel, herstart, voerbak, lift",
    "weather.name": "Amsterdam, Rotterdam, Utrecht, Antwerpen, Gent",
    "sensor.name": "buitenthermometer, regenmeter, stroommeter, barometer",
    "binary_sensor.name": "bewegingssensor, rookmelder, leksensor, parkeerplaats",
    "open_sensor.name": "brievenbus, koelkast, lade, kledingkast",
    "todo.name": "huishouden, vakantie, tuin, familie",
    "timer_name": "pizza, pasta, wasgoed, thee, taart, eieren",
    "shopping_list_item": "melk, eieren, brood, boter, appels, tomaten, rijst, kaas, koffie,"
    " batterijen, zeep, honing",
    "todo_list_item": "rekening betalen, auto wassen, vuilnis buiten zetten, ramen lappen, tent,"
    " handschoenen, verf, schroeven",
    "message": "het eten is klaar, de bus is er, we vertrekken zo, het sneeuwt buiten, bedtijd"
    " kinderen",
    "timer_command": "zet de radio uit, open de rolluiken, start de robotstofzuiger, zet de"
    " staande lamp aan",
}
